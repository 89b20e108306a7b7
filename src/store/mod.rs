//! Where the bytes are.

pub mod disk;
pub mod mapped;
mod open;
pub mod partial;

pub use disk::{Body, Disk, PartialFile, StoreError, Stored};
pub use mapped::Mapping;
pub use partial::{Partial, PartialData, Resumed};
