//! Where the bytes are.

pub mod disk;

pub use disk::{Disk, Partial, StoreError, Stored};
