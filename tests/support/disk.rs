//! Disks that run full, fail or do not answer: small filesystems, and a library that stands in for calls of the C library
//! under a running Larder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::larder::Builder;
use super::{Hub, Larder, RepositoryConfig, eventually};

/// Stands in for calls of the C library on files. Larder makes its calls by `std::fs` and SQLite, and both go through the
/// C library; what `rustix` does (`statvfs`, `fallocate`, `preadv2` with `RWF_NOWAIT`, `sendfile`) does not, and is not
/// slowed down here. These never wait for the disk, or only for what the kernel knows already.
///
/// The files in the folder that `SLOW_DISK` names say what is to be:
///
/// * `slow`: each sync takes as many milliseconds as stand in it or, where it is empty, until it is gone. The beginnings
///   and ends of such calls are noted in `calls`.
/// * `slow_unlink`: to remove a file takes so many milliseconds. A disk that was measured removes 370 files a second. Each
///   removal is noted in `unlinks`.
/// * `hang`: each call on a file below the folder that stands in it ends only when `hang` is gone, as on a hard mount of a
///   file server that does not answer (nfs(5), "hard"), a frozen filesystem (fsfreeze(8)) or a dying disk. Calls are noted
///   in `hung`.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char *path_of(char *path, size_t size, const char *name) {
    const char *dir = getenv("SLOW_DISK");
    snprintf(path, size, "%s/%s", dir ? dir : "/nonexistent", name);
    return path;
}

static void pause_for(long milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {}
}

static long sys_open(const char *path, int flags, int mode) {
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static void note(const char *name, char mark) {
    char path[4096];
    long calls = sys_open(path_of(path, sizeof path, name), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (calls >= 0) {
        if (syscall(SYS_write, calls, &mark, 1) != 1) abort();
        syscall(SYS_close, calls);
    }
}

/* What stands in a file; -1 where it is not there. */
static long text_of(const char *name, char *text, size_t size) {
    char path[4096];
    long file = sys_open(path_of(path, sizeof path, name), O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return -1;
    long length = syscall(SYS_read, file, text, size - 1);
    syscall(SYS_close, file);
    text[length > 0 ? length : 0] = 0;
    return length;
}

static int is_there(const char *name) {
    char path[4096];
    return syscall(SYS_faccessat, AT_FDCWD, path_of(path, sizeof path, name), F_OK) == 0;
}

static void be_slow(void) {
    char text[16];
    if (text_of("slow", text, sizeof text) < 0) return;
    note("calls", 'b');
    if (text[0]) {
        pause_for(atol(text));
    } else {
        while (is_there("slow")) pause_for(5);
    }
    note("calls", 'e');
}

static void hang_at(const char *path) {
    char below[4096];
    if (!path || path[0] != '/' || text_of("hang", below, sizeof below) <= 0) return;
    if (strncmp(path, below, strlen(below)) != 0) return;
    note("hung", 'b');
    while (is_there("hang")) pause_for(5);
    note("hung", 'e');
}

static void hang_on(int file) {
    char link[64], path[4096];
    if (!is_there("hang")) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    hang_at(path);
}

#define MODE(flags, mode) \
    int mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }

int open(const char *path, int flags, ...) { MODE(flags, mode) hang_at(path); return sys_open(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) hang_at(path); return sys_open(path, flags, mode); }
int statx(int dir, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
    if (path[0]) hang_at(path); else hang_on(dir);
    return syscall(SYS_statx, dir, path, flags, mask, found);
}
ssize_t pread64(int file, void *into, size_t length, off_t at) { hang_on(file); return syscall(SYS_pread64, file, into, length, at); }
ssize_t pread(int file, void *into, size_t length, off_t at) { hang_on(file); return syscall(SYS_pread64, file, into, length, at); }
ssize_t pwrite64(int file, const void *from, size_t length, off_t at) { hang_on(file); return syscall(SYS_pwrite64, file, from, length, at); }
ssize_t pwrite(int file, const void *from, size_t length, off_t at) { hang_on(file); return syscall(SYS_pwrite64, file, from, length, at); }
int rename(const char *from, const char *to) { hang_at(from); return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0); }
int mkdir(const char *path, mode_t mode) { hang_at(path); return syscall(SYS_mkdirat, AT_FDCWD, path, mode); }
int unlink(const char *path) {
    char text[16];
    hang_at(path);
    if (text_of("slow_unlink", text, sizeof text) > 0) { note("unlinks", 'u'); pause_for(atol(text)); }
    return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int fsync(int file) { be_slow(); hang_on(file); return syscall(SYS_fsync, file); }
int fdatasync(int file) { be_slow(); hang_on(file); return syscall(SYS_fdatasync, file); }
int syncfs(int file) { be_slow(); hang_on(file); return syscall(SYS_syncfs, file); }
"#;

/// The disk of one Larder, in the hand of a test.
pub struct SlowDisk(TempDir);

impl SlowDisk {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let source = dir.path().join("slow_disk.c");
        std::fs::write(&source, LIBRARY).expect("written");
        let disk = Self(dir);
        let options = ["-shared", "-fPIC", "-Wall", "-Werror", "-o"].map(OsStr::new);
        let built = Command::new("cc").args(options).arg(disk.library()).arg(source).status();
        assert!(built.expect("a C compiler is there").success(), "the library could not be built");
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn library(&self) -> PathBuf {
        self.path().join("slow_disk.so")
    }

    /// A Larder on it, in front of a hub. Its tags stay fresh, so that what is served is a hit also when the
    /// hub is gone.
    pub fn under(&self, hub: &Hub) -> Builder {
        self.beneath(Larder::builder().config(RepositoryConfig::new("hub").set("max_age = \"1h\"").upstream(hub)))
    }

    /// The same for a Larder that is configured otherwise.
    pub fn beneath(&self, larder: Builder) -> Builder {
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        larder.env("LD_PRELOAD", &text(&self.library())).env("SLOW_DISK", &text(self.path()))
    }

    /// From now on no sync ends before [`Self::let_go`].
    pub fn hold(&self) {
        self.slow_down("");
    }

    /// From now on each sync takes this long.
    pub fn take(&self, time: Duration) {
        self.slow_down(&time.as_millis().to_string());
    }

    fn slow_down(&self, text: &str) {
        self.say("slow", text);
    }

    fn say(&self, name: &str, text: &str) {
        // At once, as the library may be looking.
        let new = self.path().join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(new, self.path().join(name)).expect("renamed");
    }

    /// From now on no call on a file of this Larder's cache directory ends before [`Self::answer`].
    pub fn hang(&self, larder: &Larder) {
        self.say("hang", larder.dir().to_str().expect("text"));
    }

    /// What hangs ends, and nothing hangs any more.
    pub fn answer(&self) {
        std::fs::remove_file(self.path().join("hang")).expect("removed");
    }

    /// From now on it takes this long to remove a file.
    pub fn remove_in(&self, time: Duration) {
        self.say("slow_unlink", &time.as_millis().to_string());
    }

    /// How many files were removed since it takes long.
    pub fn removed(&self) -> usize {
        std::fs::read_to_string(self.path().join("unlinks")).unwrap_or_default().len()
    }

    /// How many calls hang or have hung.
    pub fn hung(&self) -> usize {
        std::fs::read_to_string(self.path().join("hung")).unwrap_or_default().matches('b').count()
    }

    /// The disk is well again.
    pub fn let_go(&self) {
        std::fs::remove_file(self.path().join("slow")).expect("removed");
    }

    /// How many slow syncs have begun, and how many ended.
    pub fn calls(&self) -> (usize, usize) {
        let calls = std::fs::read_to_string(self.path().join("calls")).unwrap_or_default();
        let count = |mark| calls.matches(mark).count();
        (count('b'), count('e'))
    }

    pub async fn has_begun(&self, syncs: usize) {
        eventually("it is being synced", async || self.calls().0 >= syncs).await;
    }
}

/// A small filesystem in memory, mounted for one test. Needs root, as the real clients do.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], dir.path());
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space there is, but for what is rounded away.
    pub fn fill_up(&self) -> std::path::PathBuf {
        let filler = self.path().join("filler");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&filler).expect("opened");
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        filler
    }

    /// From now on it can only be read.
    pub fn only_for_reading(&self) {
        run("mount", &["-o", "remount,ro"], self.path());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l"], self.0.path());
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let status = Command::new(program).args(arguments).arg(path).status().expect("mount and umount are there");
    assert!(status.success(), "{program} failed");
}
