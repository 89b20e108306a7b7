//! Where the bytes are.

pub mod disk;
pub mod partial;

pub use disk::{Disk, StoreError, Stored};
pub use partial::{Partial, PartialData, Resumed};
