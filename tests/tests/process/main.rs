//! Whole processes: real stores on real disks and sockets, broken on purpose.
//!
//! Each test starts the binary that `make build` made. What every one of them proves in the end is
//! the same: all that was acknowledged is there, and no client saw anything that one copy of the
//! data could not have shown. `polyraft_tests::process` has the harness, `polyraft_tests::workload`
//! the clients.

mod beginnings;
mod command_line;
mod command_line_manners;
mod crashes;
mod directory;
mod groups;
mod identity;
mod membership;
mod outages;
mod range_storm;
mod ranges;
mod scans;
