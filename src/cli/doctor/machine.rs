//! The machine: disk, clock, limits, ports, certificates in files.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::Findings;
use crate::cli::manage::size as gib;
use crate::config::Config;
use crate::x509::Certificate;
use crate::{clock, descriptors, ops};

/// A certificate that ends sooner than this is warned of.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
/// Free inodes below which a disk counts as full.
const FEW_INODES: u64 = 10_000;
/// Filesystems on which a cache does badly, by their number (`man 2 statfs`).
const FILESYSTEMS: [(u64, &str, &str); 6] = [
    (0x6969, "NFS", "locks and renames may not hold there; put cache.dir on a local disk"),
    (0xff53_4d42, "SMB", "locks and renames may not hold there; put cache.dir on a local disk"),
    (0xfe53_4d42, "SMB", "locks and renames may not hold there; put cache.dir on a local disk"),
    (0x794c_7630, "an overlay (a container's own layer)", "the cache is gone with the container; mount a volume there"),
    (0x0102_1994, "memory (tmpfs)", "the cache takes memory and is gone after a restart; put cache.dir on a disk"),
    (0x6573_5546, "FUSE", "it may lack what a cache needs; put cache.dir on a local disk"),
];

/// Checks the disk, the clock, the limits and the certificates.
pub fn check(config: &Config, findings: &mut Findings) {
    disk(config, findings);
    match clock::is_plausible() {
        true => findings.ok("clock", format!("it says {}", humantime::format_rfc3339_seconds(clock::wall()))),
        false => findings.error("clock", ops::WRONG_CLOCK),
    }
    descriptors::raise();
    match descriptors::few() {
        None => findings.ok("limits", "enough files and connections may be open"),
        Some(limit) => findings.warning(
            "limits",
            format!("only {limit} files and connections may be open; raise the limit (LimitNOFILE, ulimit -n)"),
        ),
    }
    let certified = config.server.tls.iter().flat_map(|tls| &tls.certificates);
    for leaf in certified.filter_map(|certified| certified.cert.first()) {
        certificate(leaf, findings);
    }
}

fn certificate(der: &[u8], findings: &mut Findings) {
    const CHECK: &str = "certificate";
    let leaf = match Certificate::read(der) {
        Ok(leaf) => leaf,
        Err(error) => return findings.error(CHECK, format!("server.tls.certificate cannot be read: {error}")),
    };
    let (name, until) = (leaf.name(), humantime::format_rfc3339_seconds(leaf.until));
    let now = clock::wall();
    match leaf.until.duration_since(now) {
        _ if leaf.from > now => findings.error(CHECK, format!("{name} is not valid yet; look at the clock")),
        Err(_) => findings.error(CHECK, format!("{name} has expired at {until}: replace server.tls.certificate")),
        Ok(left) if left < SOON => {
            findings.warning(CHECK, format!("{name} expires at {until}: replace server.tls.certificate before"));
        }
        Ok(_) => findings.ok(CHECK, format!("{name} is valid until {until}")),
    }
}

/// Looks at the folder that the cache is in, or would be made in.
fn disk(config: &Config, findings: &mut Findings) {
    const CHECK: &str = "disk";
    let dir = &config.cache.dir;
    let existing = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let shown = dir.display();
    match std::fs::metadata(existing) {
        Ok(found) if !found.is_dir() => {
            return findings.error(CHECK, format!("{} is no folder; set cache.dir", existing.display()));
        }
        Ok(_) => {}
        Err(error) => return findings.error(CHECK, format!("{shown}: {error}; set cache.dir")),
    }
    if let Err(error) = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
        let remedy = "run the doctor as the user that Larder runs as, or give it the folder with chown";
        return findings.error(CHECK, format!("{shown} cannot be written ({error}); {remedy}, or set cache.dir"));
    }
    let number = rustix::fs::statfs(existing).map(|found| u64::try_from(found.f_type).unwrap_or(0) & 0xffff_ffff);
    if let Ok(number) = number
        && let Some((_, kind, what)) = FILESYSTEMS.iter().find(|(known, ..)| *known == number)
    {
        findings.warning(CHECK, format!("{shown} is on {kind}: {what}"));
    }
    let (all, free, inodes) = match rustix::fs::statvfs(existing) {
        Ok(found) => {
            (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, (found.f_files, found.f_favail))
        }
        Err(error) => return findings.error(CHECK, format!("{shown}: {error}")),
    };
    let kept = config.cache.min_free.of(all).unwrap_or(0);
    match (free > kept, inodes) {
        (false, _) => findings.error(
            CHECK,
            format!(
                "{} free of {} at {shown}, and cache.min_free keeps {}: nothing new can be stored; make room, or set cache.min_free and cache.max_size",
                gib(free),
                gib(all),
                gib(kept)
            ),
        ),
        (true, (files, left)) if files > 0 && left < FEW_INODES => {
            findings.warning(CHECK, format!("only {left} more files can be made at {shown}; make room for files"));
        }
        (true, _) => {
            findings.ok(CHECK, format!("{} free of {} at {shown}, {} of it kept free", gib(free), gib(all), gib(kept)));
        }
    }
}

/// Checks that the doors can be opened, or are open because the instance runs.
pub fn check_ports(config: &Config, is_running: bool, findings: &mut Findings) {
    const CHECK: &str = "ports";
    if is_running {
        return;
    }
    let proxy = config.proxy.iter().flat_map(|proxy| &proxy.listen).map(|address| ("proxy.listen", *address));
    let doors = config.server.listen.iter().map(|address| ("server.listen", *address));
    let admin = config.admin.listen.iter().map(|address| ("admin.listen", *address));
    let before = findings.0.len();
    for (key, address) in doors.chain(proxy).chain(admin) {
        if let Err(error) = TcpListener::bind(address) {
            let text = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    format!("another program has the port {address} (`ss -ltnp` shows which); end it, or set {key}")
                }
                std::io::ErrorKind::PermissionDenied => {
                    format!("{address} may not be opened by this user; set {key} to a port above 1023")
                }
                _ => format!("{address} cannot be opened: {error}; set {key} to an address of this machine"),
            };
            findings.error(CHECK, text);
        }
    }
    if findings.0.len() == before {
        findings.ok(CHECK, "all are free");
    }
}
