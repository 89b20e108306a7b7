//! An error of the API.

use axum::Json;
use axum::response::IntoResponse;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error of the API.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, and what to do.
    pub error: String,
}

/// The message of an error, beside its JSON: a browser is shown a page instead.
#[derive(Clone, Debug)]
pub struct Told(pub String);

/// An error of the API, with its status.
#[derive(Debug)]
pub struct Problem(StatusCode, String);

impl Problem {
    /// Creates an error with a status and a message for people.
    pub fn new(status: StatusCode, message: impl std::fmt::Display) -> Self {
        Self(status, message.to_string())
    }

    /// Returns the message.
    pub fn message(&self) -> &str {
        &self.1
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        let mut response = (self.0, Json(ErrorBody { error: self.1.clone() })).into_response();
        response.extensions_mut().insert(Told(self.1));
        response
    }
}
