//! References to images in the description of the API.

use utoipa::ToSchema;

/// An image, a name or a repository, as it is written in a pull: the grammar of the distribution reference
/// (<https://pkg.go.dev/github.com/distribution/reference#pkg-overview>), without the cases that have a port.
#[derive(ToSchema)]
#[schema(
    value_type = String,
    pattern = r"^[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$",
    min_length = 1,
    max_length = 255,
    example = "docker.io/library/alpine:3.20"
)]
pub struct ImageReference(#[allow(dead_code)] String);
