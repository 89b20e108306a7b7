//! Wrong configurations of replicas.

use super::refused;

/// A cluster with these lines, from line 4 on.
fn cluster(lines: &str) -> String {
    format!("[index]\nurl = \"postgres://larder@127.0.0.1/larder\"\n[cluster]\n{lines}")
}

#[test]
fn replicas_that_cannot_find_or_reach_one_another() {
    let token = "token = \"0123456789abcdef0123456789abcdef\"";
    let listen = "listen = \"127.0.0.1:17082\"";
    let advertise = "advertise = \"http://127.0.0.1:17082\"";
    refused([
        (
            format!("[cluster]\n{listen}"),
            "1: `cluster`: replicas find one another by an index that all of them share; write index.url = \"postgres://…\", or take [cluster] out",
        ),
        (
            cluster(&format!("{token}\n{advertise}")),
            "3: `cluster.listen`: it is missing; write for example listen = \"0.0.0.0:17082\"",
        ),
        (
            cluster(&format!("{listen}\nadvertise = \"http://127.0.0.1:17082\"")),
            "3: `cluster.token_file`: it is missing; write the path of a file with a secret that all replicas have, or certificates",
        ),
        (
            cluster(&format!("{listen}\n{token}")),
            "3: `cluster.advertise`: it is missing; write for example advertise = \"http://10.0.0.7:17082\", what the other replicas reach this one by",
        ),
        (
            cluster(&format!("{listen}\n{token}\nadvertise = \"https://10.0.0.7:17082\"")),
            "6: `cluster.advertise`: without a certificate, replicas are reached by http://",
        ),
        (
            cluster(&format!("{listen}\ntoken = \"short\"\n{advertise}")),
            "5: `cluster.token`: it needs 32 letters and digits or more, as hard to guess as those of `openssl rand -hex 32`",
        ),
        (
            cluster(&format!("{listen}\n{token}\ntoken_file = \"/secret\"\n{advertise}")),
            "6: `cluster.token_file`: `token` gives the token already; remove one of them",
        ),
        (
            cluster(&format!("{listen}\n{token}\nca_bundle = \"/there/is/none\"\nadvertise = \"https://a:1\"")),
            "3: `cluster.certificate`: it is missing; certificate, private_key and ca_bundle belong together: what this replica shows, and the authority of all replicas' certificates",
        ),
        (
            cluster(&format!("listen = \"127.0.0.1:5000\"\n{token}\n{advertise}")),
            "4: `cluster.listen`: 127.0.0.1:5000 is in `server.listen` too; choose another port",
        ),
    ]);
}
