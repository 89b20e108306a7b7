//! An object mapped into memory, complete or on its way in, so that its pages go to clients without being copied here:
//! by `sendfile(2)` where a frame of it comes to a plain socket, else from the mapping.
//!
//! This is the only module with `unsafe`. It relies on the following:
//!
//! - A mapping is made of the whole file, with the length that the file has or, on its way in, will have. It is never
//!   written through, and lives until the last [`Frame`] cut from it is dropped. A frame lies within its mapping. So
//!   the memory behind a frame stays mapped and readable for as long as the frame.
//! - The bytes of a frame do not change. A complete object's file is made by a rename and never opened for writing
//!   again; eviction unlinks the file, which leaves the mapping whole. Of a file that grows, only bytes that are there
//!   are cut, and no transfer writes where bytes are there: a copy that turns out wrong is dropped with its file, and a
//!   later fill that goes on with a file writes what is missing. Other programs that may write to the cache directory
//!   are trusted not to write into its objects; the operator has to ensure that, as for any mapped file.
//! - If somebody truncates a file all the same, or the disk fails, touching a page of it would be SIGBUS.
//!   [`Mapping::load`] gets an error instead, and frames go to plain HTTP/1 sockets only, which touch them inside
//!   `sendfile(2)` and `writev(2)`, where that is an error, too. Code that reads the bytes itself (HTTP/2 copies small
//!   pieces, TLS all) must copy them with `pread` and not take a frame.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;
use rustix::mm::{MapFlags, ProtFlags};

/// The number of `cachestat(2)`, the same on all architectures but Alpha.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
struct CachestatRange {
    at: u64,
    length: u64,
}

/// `struct cachestat` of `linux/mman.h`; counts of pages.
#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// A whole file, mapped for reading.
#[derive(Debug)]
pub struct Mapping {
    file: Arc<File>,
    start: NonNull<u8>,
    /// In bytes; not zero.
    length: usize,
}

// SAFETY: the memory is read-only and belongs to the mapping, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is ever written through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file, which are all that it has or will have. Does not read them.
    pub fn new(file: Arc<File>, length: u64) -> io::Result<Arc<Self>> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at no address"))?;
        Ok(Arc::new(Self { file, start, length }))
    }

    /// Returns how many bytes are mapped.
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// Returns whether `[at, at + length)` is in the page cache, so that reading it waits for no disk. Quick. Also
    /// returns `false` if the kernel does not say: before Linux 6.5, or because of a filter of system calls.
    pub fn is_resident(&self, at: u64, length: u64) -> bool {
        let page = rustix::param::page_size() as u64;
        let range = CachestatRange { at, length };
        let mut found = Cachestat::default();
        // SAFETY: both point to structures of ours, laid out as the kernel has them (cachestat(2)),
        // that live through the call.
        let result = unsafe { libc::syscall(CACHESTAT, self.file.as_raw_fd(), &raw const range, &raw mut found, 0) };
        let wanted = (at + length).div_ceil(page) - at / page;
        result == 0 && found.cached >= wanted
    }

    /// Brings `[at, at + length)` into the page cache; blocks. Fails if the disk fails, or if the file has become
    /// shorter.
    pub fn load(&self, at: u64, length: u64) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        let (mut at, end) = (at, at + length);
        while at < end {
            let part = &mut buffer[..usize::try_from(end - at).unwrap_or(usize::MAX).min(64 * 1024)];
            self.file.read_exact_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Returns the bytes `[at, at + length)`, cut short at the end of the object. The caller has found them resident or
    /// has loaded them.
    pub fn frame(self: &Arc<Self>, at: u64, length: u64) -> Bytes {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.length);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(self.length - from);
        Bytes::from_owner(Frame { mapping: self.clone(), from, length })
    }

    /// Returns where in the object `bytes` are, if they are a part of a frame of this mapping.
    pub fn position(&self, bytes: &[u8]) -> Option<u64> {
        let at = (bytes.as_ptr() as usize).checked_sub(self.start.as_ptr() as usize)?;
        (at < self.length && !bytes.is_empty()).then_some(at as u64)
    }

    /// Sends at most `length` bytes from `at` on to a socket that is ready to take them, without touching the mapping.
    /// Returns how many bytes were sent.
    pub fn send(&self, socket: impl AsFd, at: u64, length: usize) -> io::Result<usize> {
        let mut at = at;
        match rustix::fs::sendfile(socket, &self.file, Some(&mut at), length)? {
            0 if length > 0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an object's file became shorter")),
            sent => Ok(sent),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no frame is left: each holds it alive.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) } {
            tracing::error!(%error, "cannot unmap an object");
        }
    }
}

/// A part of a mapping that keeps it alive.
struct Frame {
    mapping: Arc<Mapping>,
    from: usize,
    length: usize,
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `from + length` is at most the mapping's length, which stays mapped and unchanged
        // while `self` is borrowed (see the head of this module).
        unsafe { std::slice::from_raw_parts(self.mapping.start.as_ptr().add(self.from), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(content: &[u8]) -> (Arc<File>, Arc<Mapping>) {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, content).expect("written");
        let file = Arc::new(file);
        let mapping = Mapping::new(file.clone(), content.len() as u64).expect("mapped");
        (file, mapping)
    }

    #[test]
    fn a_frame_outlives_its_mapping_and_file() {
        let content: Vec<u8> = (0..100_000).map(|at: u32| (at % 251) as u8).collect();
        let (file, mapping) = mapped(&content);
        mapping.load(5_000, 90_000).expect("loaded");
        let frame = mapping.frame(5_000, 90_000);
        drop((file, mapping));
        assert_eq!(frame, content[5_000..95_000]);
    }

    #[test]
    fn a_piece_of_a_frame_is_found_again() {
        let (_file, mapping) = mapped(&[1; 10_000]);
        let (_other_file, other) = mapped(&[1; 10_000]);
        let frame = mapping.frame(100, 5_000);
        assert_eq!(mapping.position(&frame), Some(100));
        assert_eq!(mapping.position(&frame.slice(50..)), Some(150));
        assert_eq!(mapping.position(&frame[..0]), None);
        assert_eq!(other.position(&frame), None);
        assert_eq!(mapping.position(&[1; 10]), None);
    }

    #[test]
    fn nothing_lies_beyond_the_end() {
        let (_file, mapping) = mapped(b"short");
        assert_eq!(mapping.frame(3, 100), b"rt"[..]);
        assert!(mapping.frame(6, 1).is_empty());
        assert!(mapping.frame(u64::MAX, u64::MAX).is_empty());
        assert!(!mapping.is_resident(1 << 20, 1));
        assert!(mapping.load(4, 2).is_err());
    }

    #[test]
    fn a_file_cut_short_is_an_error_and_not_a_crash() {
        let (file, mapping) = mapped(&[7; 64 << 10]);
        file.set_len(10).expect("cut");
        assert!(mapping.load(0, 64 << 10).is_err());
    }
}
