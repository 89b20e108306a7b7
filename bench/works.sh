# shellcheck shell=bash
# What bench/run measures, a `measure_WORK` and a `show_WORK` for each work. Figures go to files in $dir/figures.

note() { mkdir -p "$dir/figures"; echo "$2" >>"$dir/figures/$1"; } # NAME FIGURE
median() { sort -n "$dir/figures/$1" | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; } # NAME
ratio() { bc -l <<<"$1 / $2" | xargs printf '%.2f'; }
against() { ratio "$(median "$1")" "$(median "$2")"; } # NAME NAME
ticks() { # CPU of a process and its children, in ms
    local total=0 each
    for each in "$1" $(pgrep -P "$1" || true); do
        total=$((total + $(awk '{print $14 + $15}' "/proc/$each/stat")))
    done
    echo $((total * 10))
}
bytes_of() { sed 's/GB/*1073741824/;s/MB/*1048576/;s/KB/*1024/' <<<"$1" | bc -l; }
anonymous() { awk '/^RssAnon/ {print $2 / 1024}' "/proc/$1/status"; } # MiB

load() { # NAME SERVER SCHEME CONNECTIONS PATH [WRK-OPTION...]: notes .speed GB/s, .cpu ms per GB, .rate, .each CPU µs per request, .p99 ms
    local name=$1 server=$2 before after out bytes count p99
    before=$(ticks "${pid[$server]}")
    out=$(wrk -t$(($4 < 2 ? 1 : 2)) -c"$4" -d${seconds}s --timeout 30s --latency -H "Accept: $type" "${@:6}" "$3://127.0.0.1:${port[$server]}/v2/bench/app/$5")
    after=$(ticks "${pid[$server]}")
    ! grep -q 'Non-2xx' <<<"$out" || { echo "$name of $server: errors: $out" >&2; exit 1; }
    bytes=$(bytes_of "$(sed -n 's/^Transfer\/sec: *//p' <<<"$out")")
    count=$(sed -n 's/^ *\([0-9]*\) requests in.*/\1/p' <<<"$out")
    p99=$(sed -n 's/^ *99% *//p' <<<"$out" | sed 's/us/\/1000/;s/ms//;s/\([0-9]\)s/\1*1000/' | bc -l)
    note "$name.speed.$server" "$(bc -l <<<"$bytes / 1000000000")"
    note "$name.cpu.$server" "$(bc -l <<<"($after - $before) / ($bytes * $seconds / 1000000000)")"
    note "$name.rate.$server" "$(sed -n 's/^Requests\/sec: *//p' <<<"$out")"
    note "$name.each.$server" "$(bc -l <<<"($after - $before) * 1000 / ($count + 1)")"
    note "$name.p99.$server" "$p99"
}

measure_blob() {
    for server in nginx peer larder; do
        for connections in 1 16; do load "blob$connections" $server http $connections "blobs/$digest"; done
    done
}
show_blob() {
    for connections in 1 16; do
        for server in nginx peer larder; do
            printf 'blob hit, %2d connections  %-7s %6.2f GB/s  %5.0f CPU ms per GB\n' $connections $server \
                "$(median blob$connections.speed.$server)" "$(median blob$connections.cpu.$server)"
        done
        echo "  larder: $(against blob$connections.speed.larder blob$connections.speed.nginx) × nginx's speed, $(against blob$connections.cpu.larder blob$connections.cpu.nginx) × its CPU; $(against blob$connections.cpu.larder blob$connections.cpu.peer) × docker-registry's CPU"
    done
}

measure_requests() {
    cat >"$dir/ranges.lua" <<'END'
request = function()
    local at = math.random(0, 4095) * 65536
    return wrk.format("GET", nil, {Range = string.format("bytes=%d-%d", at, at + 65535)})
end
END
    for server in nginx larder; do
        load digest $server http 32 "manifests/$manifest"
        load tag $server http 32 manifests/1
        load small $server http 32 "blobs/$small"
        load ranges $server http 32 "blobs/$digest" -s "$dir/ranges.lua"
    done
    load digest peer http 32 "manifests/$manifest"
}
show_requests() {
    for what in digest tag small ranges; do
        for server in nginx larder; do
            printf '%-7s %-7s %8.0f requests/s  %5.1f CPU µs each  p99 %.2f ms\n' $what $server \
                "$(median $what.rate.$server)" "$(median $what.each.$server)" "$(median $what.p99.$server)"
        done
        echo "  larder: $(against $what.rate.larder $what.rate.nginx) × nginx's rate, $(against $what.each.larder $what.each.nginx) × its CPU, $(against $what.p99.larder $what.p99.nginx) × its p99"
    done
    echo "  manifests by digest: $(against digest.rate.larder digest.rate.peer) × docker-registry's rate"
}

measure_tls() {
    local out
    for server in nginx-tls larder-tls; do
        for connections in 1 16; do load "tls$connections" $server https $connections "blobs/$digest"; done
        out=$(h2load -n 64 -c 4 -m 4 -w 24 -W 24 "https://127.0.0.1:${port[$server]}/v2/bench/app/blobs/$digest")
        grep -q ' 64 succeeded' <<<"$out" || { echo "HTTP/2 of $server: $out" >&2; exit 1; }
        note "h2.speed.$server" "$(bytes_of "$(sed -n 's/^finished in.* \([0-9.]*[KMG]B\)\/s$/\1/p' <<<"$out") / 1000000000")"
    done
}
show_tls() {
    for connections in 1 16; do
        echo "TLS hit, $connections connections: larder $(median tls$connections.speed.larder-tls | xargs printf %.2f) GB/s, $(against tls$connections.speed.larder-tls tls$connections.speed.nginx-tls) × nginx's speed, $(against tls$connections.cpu.larder-tls tls$connections.cpu.nginx-tls) × its CPU"
    done
    echo "HTTP/2 hit: larder $(median h2.speed.larder-tls | xargs printf %.2f) GB/s, $(against h2.speed.larder-tls h2.speed.nginx-tls) × nginx's"
}

download() { # NAME SERVER PREFIX: notes .time s, .first ms, .cpu ms per GB
    local before after times first total
    before=$(ticks "${pid[${4:-$2}]}")
    times=$(curl -fsS -o /dev/null -w '%{time_starttransfer} %{time_total}' "http://127.0.0.1:${port[$2]}/v2/$3bench/app/blobs/$digest")
    after=$(ticks "${pid[${4:-$2}]}")
    read -r first total <<<"$times"
    note "$1.time" "$total"; note "$1.first" "$(bc -l <<<"$first * 1000")"
    note "$1.cpu" "$(bc -l <<<"($after - $before) / ($mib * 1.048576 / 1000)")"
}
checked() { # NAME PORT: a download whose digest is checked
    local began; began=$(date +%s.%N)
    curl -fsS "http://127.0.0.1:$2/v2/bench/app/blobs/$digest" | openssl sha256 >/dev/null
    note "$1.time" "$(bc -l <<<"$(date +%s.%N) - $began")"
}
measure_cold() {
    clear_larder; clear_nginx
    download direct upstream ""
    checked checked "${port[upstream]}"
    download cold larder ""
    download proxied proxied "" nginx
    fill "http://127.0.0.1:${port[larder]}"
}
show_cold() {
    echo "cold $mib MiB, unthrottled: larder $(median cold.time) s, $(against cold.time direct.time) × the direct download ($(median direct.time) s), $(against cold.time checked.time) × that with its digest checked; first byte $(median cold.first | xargs printf %.1f) ms (direct $(median direct.first | xargs printf %.1f)); CPU $(median cold.cpu | xargs printf %.0f) ms per GB"
    echo "  nginx proxy_cache: $(against proxied.time direct.time) × the direct download"
}
measure_paced() {
    clear_larder
    download direct20 paced20 "" nginx
    download cold20 larder paced20/
    fill "http://127.0.0.1:${port[larder]}"
}
show_paced() {
    echo "cold $mib MiB, 20 MB/s a connection: larder $(median cold20.time) s, $(against cold20.time direct20.time) × the direct download"
}

together() { # NAME SERVER PREFIX COUNT BLOB [PROCESS]: notes .time s, .cpu ms per GB served, .memory MiB at most
    local before after out most=0 now
    before=$(ticks "${pid[${6:-$2}]}")
    "$crowd" "${port[$2]}" "/v2/$3bench/app/blobs/$5" "$4" read >"$dir/crowd.out" & local client=$!
    while kill -0 $client 2>/dev/null; do
        now=$(anonymous "${pid[${6:-$2}]}"); most=$(bc -l <<<"if ($now > $most) $now else $most"); sleep 0.05
    done
    wait $client
    after=$(ticks "${pid[${6:-$2}]}")
    read -r bytes out <"$dir/crowd.out"
    note "$1.time" "$out"; note "$1.cpu" "$(bc -l <<<"($after - $before) / ($bytes / 1000000000)")"; note "$1.memory" "$most"
}
measure_crowd() {
    clear_larder; clear_nginx
    together crowd larder paced60/ 64 "$digest"
    together crowd-nginx proxied60 "" 64 "$digest" nginx
    clear_larder
    together crowd1600 larder paced60/ 1600 "$medium"
    fill "http://127.0.0.1:${port[larder]}"
}
show_crowd() {
    echo "64 clients, one cold blob at 60 MB/s a connection: larder $(median crowd.time) s, CPU $(median crowd.cpu | xargs printf %.0f) ms per GB served; nginx proxy_cache $(median crowd-nginx.time) s, $(median crowd-nginx.cpu | xargs printf %.0f) ms"
    echo "1,600 clients, one cold blob of 16 MiB: anonymous memory at most $(median crowd1600.memory | xargs printf %.0f) MiB"
}

stalled() { # NAME SERVER KIND
    local now
    coproc stalled { "$crowd" "${port[$2]}" "/v2/bench/app/blobs/$digest" 256 "$3" "$dir/cert.pem"; }
    read -r now <&"${stalled[0]}"
    [ "$now" = stalled ] || { echo "$3: $now" >&2; exit 1; }
    note "$1" "$(anonymous "${pid[$2]}")"
    local client=$stalled_PID
    eval "exec ${stalled[1]}>&-"
    wait "$client"
}
measure_memory() {
    note idle "$(anonymous "${pid[larder]}")"
    stalled stalled.plain larder stall
    stalled stalled.tls larder-tls stall-tls
    stalled stalled.h2 larder-tls stall-h2
}
show_memory() {
    echo "anonymous memory, MiB: before $(median idle | xargs printf %.0f); with 256 stalled streams of a hit: plain $(median stalled.plain | xargs printf %.0f), TLS $(median stalled.tls | xargs printf %.0f), HTTP/2 $(median stalled.h2 | xargs printf %.0f)"
}
