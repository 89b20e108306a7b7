//! Promises kept by the running server: the real binary between scripted upstreams, real registries
//! and real clients.

mod abuse;
mod admission;
mod bad_input;
mod behind_a_proxy;
mod breaking;
mod canaries;
mod changed_rules;
mod client_credentials;
mod clients;
mod config_commands;
mod credentials;
mod damage;
mod disk_bound;
mod full_disk;
mod house;
mod manage;
mod never_wrong;
mod on_the_way;
mod one_transfer;
mod other_content;
mod outage;
mod proxied;
mod ranges;
mod rate_limits;
mod reload;
mod resume;
mod secrets;
mod serving;
mod shares;
mod sources;
mod states;
mod support;
mod tls;
mod tokens;
mod tunnels;
