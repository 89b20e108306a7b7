//! The `larder` command.

use std::process::ExitCode;

/// A request makes some dozens of small allocations. With glibc's allocator they took a third of its CPU
/// (bench/NOTES.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    larder::run()
}
