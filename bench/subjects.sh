# shellcheck shell=bash
# What bench/run compares: content, upstreams and servers. Sets `port` and `pid` of each server.

declare -A port pid
type=application/vnd.docker.distribution.manifest.v2+json # docker-registry answers 404 to who does not name it

free_port() { # Ports below the range that the system hands out.
    local port
    while :; do
        port=$((20000 + RANDOM % 9000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
wait_for() { curl -kfsS -H "Accept: $type" --retry 20 --retry-delay 1 --retry-all-errors --max-time 30 -o /dev/null "$1" 2>/dev/null; }
registry() { # NAME MORE-YAML
    port[$1]=$(free_port)
    printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: "127.0.0.1:%s"}\n%s\n' \
        "$dir/$1" "${port[$1]}" "$2" >"$dir/$1.yml"
    docker-registry serve "$dir/$1.yml" >"$dir/$1.log" 2>&1 &
    pid[$1]=$!; pids+=($!)
    wait_for "http://127.0.0.1:${port[$1]}/v2/"
}
push_blob() { # FILE → digest
    local digest location
    digest=sha256:$(sha256sum "$1" | cut -d' ' -f1)
    location=$(curl -fsS -X POST -D - -o /dev/null "http://127.0.0.1:${port[upstream]}/v2/bench/app/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -fsS -X PUT -H 'Content-Type: application/octet-stream' -T "$1" -o /dev/null "$location&digest=$digest"
    ln "$1" "$dir/www/v2/bench/app/blobs/$digest"
    echo "$digest"
}
larder() { # NAME MORE-TOML
    port[$1]=$(free_port); port[$1-admin]=$(free_port)
    {
        for name in upstream paced20 paced60; do
            printf '[repository."%s"]\nmax_age = "1h"\n[[repository."%s".upstream]]\nurl = "http://127.0.0.1:%s"\n' "$name" "$name" "${port[$name]}"
        done
        printf '[server]\nlisten = "127.0.0.1:%s"\ndefault_repository = "upstream"\n%s\n' "${port[$1]}" "$2"
        printf '[admin]\nlisten = "127.0.0.1:%s"\n[cache]\ndir = "%s"\n[logging]\nlevel = "warn"\n' "${port[$1-admin]}" "$dir/$1"
    } >"$dir/$1.toml"
    "$binary" serve --config "$dir/$1.toml" 2>"$dir/$1.log" &
    pid[$1]=$!; pids+=($!)
}
start_subjects() {
    mkdir -p "$dir/www/v2/bench/app/blobs" "$dir/www/v2/bench/app/manifests"
    registry upstream ""
    head -c $((mib << 20)) /dev/urandom >"$dir/blob"; digest=$(push_blob "$dir/blob")
    head -c 8192 /dev/urandom >"$dir/small"; small=$(push_blob "$dir/small")
    head -c $((16 << 20)) "$dir/blob" >"$dir/medium"; medium=$(push_blob "$dir/medium")
    printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"%s","size":%d},"layers":[]}' \
        "$type" "$digest" $((mib << 20)) >"$dir/manifest"
    manifest=sha256:$(sha256sum "$dir/manifest" | cut -d' ' -f1)
    curl -fsS -X PUT -H "Content-Type: $type" --data-binary "@$dir/manifest" -o /dev/null \
        "http://127.0.0.1:${port[upstream]}/v2/bench/app/manifests/1"
    ln "$dir/manifest" "$dir/www/v2/bench/app/manifests/$manifest"; ln "$dir/manifest" "$dir/www/v2/bench/app/manifests/1"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$dir/key.pem" -out "$dir/cert.pem" -days 1 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=CA:FALSE 2>"$dir/openssl.log"

    for name in nginx nginx-tls paced20 paced60 proxied proxied60; do port[$name]=$(free_port); done
    cat >"$dir/nginx.conf" <<END
worker_processes 2; worker_rlimit_nofile 16384; daemon off; pid $dir/nginx.pid; error_log $dir/nginx.log; user $(id -un);
events { worker_connections 8192; } http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; root $dir/www;
http2_max_requests 1000000000; proxy_cache_path $dir/proxied keys_zone=blobs:10m max_size=20g use_temp_path=off;
ssl_certificate $dir/cert.pem; ssl_certificate_key $dir/key.pem;
server { listen 127.0.0.1:${port[nginx]}; }
server { listen 127.0.0.1:${port[nginx-tls]} ssl http2; }
server { listen 127.0.0.1:${port[paced20]}; limit_rate 20m; }
server { listen 127.0.0.1:${port[paced60]}; limit_rate 60m; }
server { listen 127.0.0.1:${port[proxied]}; location / { proxy_pass http://127.0.0.1:${port[upstream]}; proxy_cache blobs; proxy_cache_valid 1h; proxy_cache_key \$uri; } }
server { listen 127.0.0.1:${port[proxied60]}; location / { proxy_pass http://127.0.0.1:${port[paced60]}; proxy_cache blobs; proxy_cache_valid 1h; proxy_cache_key 60\$uri; proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s; } } }
END
    chmod -R a+rX "$dir"
    nginx -c "$dir/nginx.conf" 2>"$dir/nginx.err" & pid[nginx]=$!; pids+=($!)
    pid[nginx-tls]=${pid[nginx]}
    registry peer "proxy: {remoteurl: \"http://127.0.0.1:${port[upstream]}\"}"
    larder larder ""
    larder larder-tls "[server.tls]
certificate = \"$dir/cert.pem\"
private_key = \"$dir/key.pem\""
    for server in nginx peer larder; do fill "http://127.0.0.1:${port[$server]}"; done
    for server in nginx-tls larder-tls; do fill "https://127.0.0.1:${port[$server]}"; done
    sleep 2 # The peer stores in the background and does not say when it is done.
}
fill() { # URL
    local page
    for page in "blobs/$digest" "blobs/$small" "manifests/$manifest" manifests/1; do wait_for "$1/v2/bench/app/$page"; done
}
clear_larder() { # Once the last fill is stored: what is stored later would stay.
    local stats
    while :; do
        stats=$(curl -fsS "http://127.0.0.1:${port[larder-admin]}/api/cache/stats")
        [[ $stats != *'"fills_running":0'* ]] || break
        sleep 0.1
    done
    curl -fsS -X DELETE -o /dev/null "http://127.0.0.1:${port[larder-admin]}/api/cache"
}
clear_nginx() { rm -rf "${dir:?}"/proxied/*; kill -HUP "${pid[nginx]}"; sleep 1; }
