//! The style sheet and the script: in the binary, under names that change with their content.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::super::problem::Problem;

/// A file that pages refer to.
pub struct Asset {
    /// The name below `/assets/`.
    name: String,
    media_type: &'static str,
    text: &'static str,
}

/// The style of all pages.
pub static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("dashboard", "css", "text/css; charset=utf-8", include_str!("assets/dashboard.css")));

/// The script of all pages.
pub static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("dashboard", "js", "text/javascript; charset=utf-8", include_str!("assets/dashboard.js"))
});

impl Asset {
    fn new(stem: &str, extension: &str, media_type: &'static str, text: &'static str) -> Self {
        use std::fmt::Write;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let hex = digest.as_ref()[..6].iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Self { name: format!("{stem}.{hex}.{extension}"), media_type, text }
    }

    /// Returns its path.
    pub fn path(&self) -> String {
        format!("/assets/{}", self.name)
    }
}

/// Answers with a file. A browser may keep it: other content has another name.
pub async fn show(Path(name): Path<String>) -> Response {
    match [&*STYLE, &*SCRIPT].into_iter().find(|asset| asset.name == name) {
        Some(asset) => {
            let kept = "private, max-age=31536000, immutable";
            ([(header::CONTENT_TYPE, asset.media_type), (header::CACHE_CONTROL, kept)], asset.text).into_response()
        }
        None => Problem::new(StatusCode::NOT_FOUND, "no such file; load the page again").into_response(),
    }
}
