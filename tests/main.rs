//! Promises kept by the running server: the real binary between scripted upstreams, real registries
//! and real clients.

mod bad_input;
mod clients;
mod config_commands;
mod damage;
mod disk_bound;
mod full_disk;
mod house;
mod manage;
mod never_wrong;
mod one_transfer;
mod outage;
mod ranges;
mod resume;
mod serving;
mod support;
