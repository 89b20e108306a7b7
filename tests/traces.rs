//! Promise: what real clients ask, in their order and their words, is answered by both doors: each object is fetched
//! once, a second pull asks for the tag alone, and with the upstream gone it goes on. The scripts were written after
//! recordings of these clients in November 2026.

use crate::support::player::{At, Player};

/// A pull of a client three times by each door: cold, warm, and with the upstream gone.
macro_rules! clients {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn by_the_registry_door() {
                three_pulls(include_str!(concat!("traces/", stringify!($name), ".txt")), At::Registry).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn by_the_proxy_door() {
                three_pulls(include_str!(concat!("traces/", stringify!($name), ".txt")), At::Proxy).await;
            }
        })*

        #[test]
        fn each_script_is_played() {
            let names = [$(stringify!($name)),*];
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
            for file in std::fs::read_dir(folder).expect("the scripts") {
                let name = file.expect("a script").file_name().into_string().expect("text");
                assert!(names.contains(&name.trim_end_matches(".txt")), "{name} is played by no test");
            }
        }
    };
}

async fn three_pulls(script: &str, at: At) {
    let mut player = Player::new(script, at).await;
    player.cold().await;
    player.warm().await;
    player.offline().await;
}

clients!(
    apptainer,
    buildkitd,
    containerd_before,
    containerd_open_ranges,
    cosign_fallback_tags,
    cosign_referrers,
    cosign_unsigned,
    crane,
    docker_classic,
    docker_containerd_store,
    flatpak,
    helm,
    notation,
    npm,
    nydus,
    oras_discover,
    podman,
    podman_chunked,
    skopeo,
    soci,
    stargz,
    systemd,
);
