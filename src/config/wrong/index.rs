//! Wrong configurations of where the index is kept.

use super::refused;

#[test]
fn the_server_of_the_index() {
    refused([
        (
            "[index]\nurl = \"mysql://larder@db/larder\"".to_owned(),
            "2: `index.url`: a URL that begins with postgres:// is needed; write for example url = \"postgres://larder@db.example/larder\", or \"sqlite\"",
        ),
        (
            "[index]\nurl = \"postgres://larder:secret@db/larder\"".to_owned(),
            "2: `index.url`: there is a password in it, which would be shown with it; write it into a file, and the file's path in `index.password_file`",
        ),
        (
            "[index]\npassword = \"secret\"".to_owned(),
            "2: `index.password`: it is for a server, which `index.url` has to name",
        ),
        (
            "[index]\nurl = \"postgres://larder@db/larder?sslmode=disable\"\nserver_ca_bundle = \"/nowhere/ca.pem\""
                .to_owned(),
            "3: `index.server_ca_bundle`: the certificate of this server is not checked; write sslmode=verify-full in `index.url`",
        ),
    ]);
}
