//! Where the bytes are.

pub mod disk;
pub mod mapped;
pub mod partial;

pub use disk::{Body, Disk, PartialFile, StoreError, Stored};
pub use mapped::Mapping;
pub use partial::{Partial, PartialData, Resumed};
