//! An error of the API.

use axum::Json;
use axum::response::IntoResponse;
use http::StatusCode;
use serde_json::json;

/// An error of the API: `{"error": "…"}`.
pub struct Problem(StatusCode, String);

impl Problem {
    /// Creates an error with a status and a message for people.
    pub fn new(status: StatusCode, message: impl std::fmt::Display) -> Self {
        Self(status, message.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
