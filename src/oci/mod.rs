//! The terms of the OCI Distribution Specification as types: pure, no I/O.

pub mod challenge;
mod contents;
pub mod digest;
pub mod error;
mod image;
pub mod link;
pub mod list;
pub mod manifest;
pub mod media_type;
pub mod name;
mod platform;
pub mod range;
pub mod reference;
pub mod route;
pub mod signed;

pub use contents::{Content, contents};
pub use digest::{Algorithm, Digest, Hasher};
pub use error::Code;
pub use image::{Blob, Image};
pub use media_type::MediaType;
pub use name::Name;
pub use platform::Platform;
pub use reference::{Reference, Tag};
