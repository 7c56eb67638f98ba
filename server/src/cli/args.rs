//! The grammar of the command line.

use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::balance::BalanceVerb;
use super::directory::DirectoryVerb;
use super::range::RangeVerb;
use super::scan::ScanArguments;
use super::store::StoreVerb;
use crate::directory::{DIRECTORY, Named};
use crate::peers::parse_peer;

const EXAMPLES: &str = "\
Example: three stores on one machine:
  polyraft start --store-id 1 --data-dir d1 --listen 127.0.0.1:7101 \\
      --peers 1=127.0.0.1:7101,2=127.0.0.1:7102,3=127.0.0.1:7103 &
  (the same with 2 and 3)
  polyraft init --groups 1000
  polyraft kv put hello world
  polyraft kv get hello
  polyraft status";

/// Thousands of Raft groups in one process.
#[derive(Debug, Parser)]
#[command(name = "polyraft", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Where the cluster is, and how to show answers.
#[derive(Clone, Debug, Args)]
pub(super) struct Connection {
    /// Addresses of stores, any of them; the next one is asked if one cannot be reached.
    #[arg(
        long,
        env = "POLYRAFT_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        value_parser = parse_endpoint
    )]
    #[arg(default_value = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103")]
    pub(super) endpoints: Vec<String>,
    /// How long the command may take, such as 500ms, 5s or 1m [default: 10s; init and range merge: 30s; range
    /// check: 1m for each; range move: 10m; store decommission: 1h].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// A table for people, or JSON for scripts.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Output,
}

impl Connection {
    /// Of one call, unless something else is asked for.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(10))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a store until it is told to leave (SIGTERM or Ctrl-C).
    Start(StartArguments),
    /// Cut the key space of a new cluster into ranges, once all its stores are started.
    #[command(after_help = "Example:\n  polyraft init --groups 1000 --endpoints 127.0.0.1:7101")]
    Init {
        /// Number of ranges; each is a Raft group.
        #[arg(long, default_value_t = 100)]
        groups: u64,
        /// Replicas of each range [default: 3, or the number of stores if there are fewer].
        #[arg(long)]
        replicas: Option<u32>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Every store at a glance.
    #[command(after_help = "Example:\n  polyraft status -o json")]
    Status {
        #[command(flatten)]
        connection: Connection,
    },
    /// Groups: list, describe, create, destroy; members and leaders.
    #[command(
        after_help = "Examples:\n  polyraft group list\n  polyraft group describe 7\n  \
        polyraft group add-learner 7 --store 4\n  polyraft group promote 7 --store 4\n  \
        polyraft group replace 7 --from 1 --to 4\n  polyraft group transfer 7 --to 2"
    )]
    Group {
        #[command(subcommand)]
        verb: GroupVerb,
    },
    /// What the cluster knows of itself: where every group is, and which stores there are.
    #[command(
        after_help = "Examples:\n  polyraft directory list\n  polyraft directory stores\n  \
        polyraft directory new-store"
    )]
    Directory {
        #[command(subcommand)]
        verb: DirectoryVerb,
    },
    /// What should change in the cluster, and why.
    #[command(after_help = "Example:\n  polyraft balance explain")]
    Balance {
        #[command(subcommand)]
        verb: BalanceVerb,
    },
    /// Ranges of keys: list, describe, split, merge; moving their replicas.
    #[command(
        after_help = "Examples:\n  polyraft range list\n  polyraft range describe --key color\n  \
        polyraft range split --at m --at t\n  polyraft range merge --at m\n  \
        polyraft range move 7 --from 1 --to 4\n  polyraft range replicas 7"
    )]
    Range {
        #[command(subcommand)]
        verb: RangeVerb,
    },
    /// Stores: move everything away from one.
    #[command(after_help = "Example:\n  polyraft store decommission 2")]
    Store {
        #[command(subcommand)]
        verb: StoreVerb,
    },
    /// Put load on a cluster and measure it.
    #[command(
        after_help = "Examples:\n  polyraft load --concurrency 256 --duration 30s\n  \
        polyraft load --rate 5000 --zipf 1.1 --json result.json\n  \
        polyraft load --ops 100000 --groups 1-10 --connections 8\n  \
        polyraft load --history history.jsonl --keys 5 --concurrency 8"
    )]
    Load(LoadArguments),
    /// Stores on this machine (three), 1,000 groups, load, a crash, and a cluster to play with.
    #[command(
        after_help = "Examples:\n  polyraft demo\n  polyraft demo --no-wait --groups 100\n  \
        polyraft demo --stores 5 --data-dir demo"
    )]
    Demo(DemoArguments),
    /// Keys: get, put, delete, compare and swap, scan.
    #[command(
        after_help = "Examples:\n  polyraft kv put color blue\n  polyraft kv get color\n  \
        polyraft kv cas color --expected blue green\n  polyraft kv cas color --absent blue\n  \
        polyraft kv delete color\n  polyraft kv scan --prefix col"
    )]
    Kv {
        #[command(subcommand)]
        verb: KvVerb,
    },
}

impl Verb {
    /// How answers and errors are to look.
    pub(super) const fn output(&self) -> Output {
        match self {
            Self::Start(_) | Self::Demo(_) => Output::Table,
            Self::Init { connection, .. } | Self::Status { connection } => connection.output,
            Self::Group { verb } => verb.connection().output,
            Self::Balance { verb } => verb.connection().output,
            Self::Directory { verb } => verb.connection().output,
            Self::Range { verb } => verb.connection().output,
            Self::Store { verb } => verb.connection().output,
            Self::Load(arguments) => arguments.connection.output,
            Self::Kv { verb } => verb.connection().output,
        }
    }
}

impl GroupVerb {
    const fn connection(&self) -> &Connection {
        match self {
            Self::List { connection }
            | Self::Describe { connection, .. }
            | Self::Create { connection, .. }
            | Self::Destroy { connection, .. }
            | Self::Replace { connection, .. }
            | Self::Transfer { connection, .. } => connection,
            Self::AddLearner(member)
            | Self::Promote(member)
            | Self::Demote(member)
            | Self::Remove(member) => &member.connection,
        }
    }
}

impl KvVerb {
    const fn connection(&self) -> &Connection {
        match self {
            Self::Get { connection, .. }
            | Self::Put { connection, .. }
            | Self::Delete { connection, .. }
            | Self::Cas { connection, .. } => connection,
            Self::Scan(arguments) => &arguments.connection,
        }
    }
}

/// How a store is started.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Example:\n  polyraft start --store-id 1 --data-dir /var/lib/polyraft --listen 10.0.0.1:7101 \\\n      \
    --peers 1=10.0.0.1:7101,2=10.0.0.2:7101,3=10.0.0.3:7101"
)]
pub(crate) struct StartArguments {
    /// Number of this store, from 1; for ever its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) store_id: u64,
    /// Where everything is kept; created if it does not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where to listen, for clients and for other stores.
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_listen)]
    pub(crate) listen: SocketAddr,
    /// Where other stores find this one [default: the address it listens on].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Stores of the cluster, this one may be among them; a new store needs one at least, unless it is alone.
    #[arg(long, value_name = "N=HOST:PORT,...", value_delimiter = ',', value_parser = parse_peer)]
    pub(crate) peers: Vec<(u64, String)>,
    /// Threads that own replicas [default: half of the processors].
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Length of a tick of the Raft clock. An election takes 10 to 20 of them.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    pub(crate) tick: Duration,
    /// Applied entries that an awake group keeps in its log for followers that lag.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub(crate) truncate_keep_entries: u64,
    /// Applied data is flushed at least this often, so that the log can be truncated.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) flush_interval: Duration,
    /// Bytes per second of all snapshots that are sent; 0: no limit.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub(crate) snapshot_rate: u64,
    /// Where to answer `GET /metrics` for Prometheus [default: nowhere].
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_listen)]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// How often leaderships are handed to stores with fewer, if this one has too many; 0s: never.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) balance_interval: Duration,
    /// What is logged to standard error, such as `info` or `polyraft_multiraft=debug`.
    #[arg(
        long,
        env = "POLYRAFT_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub(crate) log: String,
    /// Leave when standard input is closed: a store ends with the program that started it.
    #[arg(long, hide = true)]
    pub(crate) end_with_stdin: bool,
}

/// What load, and for how long.
#[derive(Clone, Debug, Args)]
pub(super) struct LoadArguments {
    /// How long, after the warm-up [default: 10s, or as long as --ops takes].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) duration: Option<Duration>,
    /// End after so many operations.
    #[arg(long, value_name = "N", conflicts_with = "warmup", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) ops: Option<u64>,
    /// Only these groups, such as 7 or 1-100,200 [default: all that have a range].
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse_range)]
    pub(super) groups: Vec<RangeInclusive<u64>>,
    /// Connections to each store, shared by the clients.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) connections: u32,
    /// For so long nothing counts.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub(super) warmup: Duration,
    /// Of the random choices [default: a new one each time, told in the summary].
    #[arg(long, value_name = "N")]
    pub(super) seed: Option<u64>,
    /// Read every acknowledged write again at the end; a missing one is a failure (exit code 1).
    #[arg(long, conflicts_with = "history")]
    pub(super) verify: bool,
    /// Clients; with --rate the most requests under way.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) concurrency: u32,
    /// Requests per second, whatever the answers do (open loop) [default: as fast as answers come].
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<f64>,
    /// Bytes of a value.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub(super) value_bytes: usize,
    /// Of a hundred requests so many are reads.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(super) reads: u32,
    /// And so many are scans of up to a hundred pairs.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(super) scans: u32,
    /// Exponent of a power law over groups; 0: all alike.
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    pub(super) zipf: f64,
    /// Keys in each group; with --history keys in all, which the clients contend for [default: 1000, 5].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) keys: Option<u64>,
    /// Write the figures here as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Get, put, delete and swap a few keys, and write every operation here, one JSON line each.
    #[arg(long, value_name = "FILE")]
    pub(super) history: Option<PathBuf>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

/// How the demonstration goes.
#[derive(Clone, Debug, Args)]
pub(crate) struct DemoArguments {
    /// Stores, each a process. One of them is killed; with fewer than three nobody takes over meanwhile.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=16))]
    pub(crate) stores: u64,
    /// Keep data and logs here; a later demo goes on with them [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Ranges, each a Raft group of three replicas.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) groups: u64,
    /// How long the load goes on; a store is killed in the middle.
    #[arg(long, value_name = "TIME", default_value = "12s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Clients.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,
    /// End after the summary instead of leaving the cluster running.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupVerb {
    /// All groups, with their ranges, members and leaders.
    #[command(after_help = "Examples:\n  polyraft group list\n  polyraft group list -o json")]
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// One group as its leader sees it.
    #[command(
        after_help = "Examples:\n  polyraft group describe 7\n  polyraft group describe 7 --local --endpoints 127.0.0.1:7102"
    )]
    Describe {
        /// Number of the group, or `directory`.
        #[arg(value_parser = parse_group)]
        group: u64,
        /// Ask the first endpoint for its own replica instead.
        #[arg(long)]
        local: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Create a group without a range.
    #[command(after_help = "Example:\n  polyraft group create --stores 1,2,3")]
    Create {
        /// Stores of its members.
        #[arg(long, value_delimiter = ',', required = true)]
        stores: Vec<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove a group and its data from all stores, for ever.
    #[command(
        after_help = "Examples:\n  polyraft group destroy 1001\n  polyraft group destroy 7 --force"
    )]
    Destroy {
        /// Number of the group, or `directory`.
        #[arg(value_parser = parse_group)]
        group: u64,
        /// Also a group with a range of keys, which no group holds from then on.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Add a member that receives the log and has no vote.
    #[command(after_help = "Example:\n  polyraft group add-learner 7 --store 4")]
    AddLearner(OneMember),
    /// Give a learner a vote, or add a voter.
    #[command(after_help = "Example:\n  polyraft group promote 7 --store 4")]
    Promote(OneMember),
    /// Take a member's vote; it goes on receiving the log.
    #[command(after_help = "Example:\n  polyraft group demote 7 --store 1")]
    Demote(OneMember),
    /// Remove a member.
    #[command(after_help = "Example:\n  polyraft group remove 7 --store 1")]
    Remove(OneMember),
    /// Replace one member by another in one joint change.
    #[command(after_help = "Example:\n  polyraft group replace 7 --from 1 --to 4")]
    Replace {
        /// Number of the group, or `directory`.
        #[arg(value_parser = parse_group)]
        group: u64,
        /// Store of the member that goes.
        #[arg(long)]
        from: u64,
        /// Store of the member that comes.
        #[arg(long)]
        to: u64,
        #[command(flatten)]
        connection: Connection,
    },
    /// Move the leadership.
    #[command(after_help = "Example:\n  polyraft group transfer 7 --to 2")]
    Transfer {
        /// Number of the group, or `directory`.
        #[arg(value_parser = parse_group)]
        group: u64,
        /// Store of the new leader.
        #[arg(long)]
        to: u64,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Args)]
pub(super) struct OneMember {
    /// Number of the group, or `directory`.
    #[arg(value_parser = parse_group)]
    pub(super) group: u64,
    /// Store of the member.
    #[arg(long)]
    pub(super) store: u64,
    #[command(flatten)]
    pub(super) connection: Connection,
}

/// How keys are written and where they belong.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct KeyOptions {
    /// Keys and values are hexadecimal.
    #[arg(long)]
    pub(super) hex: bool,
    /// The group to ask, for groups without a range.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(super) group: u64,
}

#[derive(Debug, Subcommand)]
pub(super) enum KvVerb {
    /// The value of a key.
    #[command(
        after_help = "Examples:\n  polyraft kv get color\n  polyraft kv get color --stale\n  polyraft kv get --hex 00ff"
    )]
    Get {
        /// The key.
        #[arg(allow_negative_numbers = true)]
        key: String,
        /// What the store that is asked holds, perhaps out of date.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        options: KeyOptions,
        #[command(flatten)]
        connection: Connection,
    },
    /// Write a key.
    #[command(
        after_help = "Examples:\n  polyraft kv put color blue\n  polyraft kv put --group 1001 color blue"
    )]
    Put {
        /// The key.
        #[arg(allow_negative_numbers = true)]
        key: String,
        /// The value.
        #[arg(allow_negative_numbers = true)]
        value: String,
        #[command(flatten)]
        options: KeyOptions,
        #[command(flatten)]
        connection: Connection,
    },
    /// Make a key absent.
    #[command(after_help = "Example:\n  polyraft kv delete color")]
    Delete {
        /// The key.
        #[arg(allow_negative_numbers = true)]
        key: String,
        #[command(flatten)]
        options: KeyOptions,
        #[command(flatten)]
        connection: Connection,
    },
    /// Write a key if it has the value that is expected.
    #[command(
        after_help = "Examples:\n  polyraft kv cas color --expected blue green\n  polyraft kv cas color --absent blue"
    )]
    Cas {
        /// The key.
        #[arg(allow_negative_numbers = true)]
        key: String,
        /// The new value.
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// The value it must have.
        #[arg(
            long,
            required_unless_present = "absent",
            conflicts_with = "absent",
            allow_negative_numbers = true
        )]
        expected: Option<String>,
        /// It must be absent.
        #[arg(long)]
        absent: bool,
        #[command(flatten)]
        options: KeyOptions,
        #[command(flatten)]
        connection: Connection,
    },
    /// Keys and values in order, over all ranges.
    #[command(
        after_help = "Examples:\n  polyraft kv scan --prefix user/\n  polyraft kv scan --from a --to b --limit 10\n  \
        polyraft kv scan --reverse --limit 1\n  polyraft kv scan --group 1001 -o json"
    )]
    Scan(ScanArguments),
}

/// The number of a group, or the name of one of the system's.
pub(super) fn parse_group(text: &str) -> Result<u64, String> {
    if text == Named(DIRECTORY).to_string() {
        return Ok(DIRECTORY);
    }
    let wrong = || format!("{text:?} is no number of a group, nor `directory`");
    text.parse().map_err(|_| wrong())
}

/// Reads `HOST:PORT`; names are resolved when they are used.
fn parse_endpoint(text: &str) -> Result<String, String> {
    if text.contains("://") {
        return Err("an endpoint is HOST:PORT, without a scheme such as http://".to_owned());
    }
    let wrong = || format!("{text:?} is not of the form HOST:PORT, such as 127.0.0.1:7101");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    // Colons belong to an IPv6 address, which stands in brackets.
    let bare = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare || port == 0 || !is_authority(text) {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

fn is_authority(text: &str) -> bool {
    tonic::transport::Endpoint::from_shared(format!("http://{text}")).is_ok()
}

/// Reads `HOST:PORT` of this machine. A name may stand for several addresses; then IPv4 is taken.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let found = text
        .to_socket_addrs()
        .map_err(|error| format!("{text:?} is no HOST:PORT to listen on: {error}"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    let none = || format!("{text:?} stands for no address");
    found.first().copied().ok_or_else(none)
}

/// Reads `7` or `1-100`.
fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let wrong = || format!("{text:?} is no group and no range of groups such as 1-100");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    if first == 0 || last < first {
        return Err(wrong());
    }
    Ok(first..=last)
}

/// Reads `500ms`, `5s`, `2m` or `1h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?} is no time such as 500ms, 5s or 2m")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no time such as 500ms, 5s or 2m"))?;
    match Duration::try_from_secs_f64(number * factor) {
        Ok(time) if time <= LONGEST => Ok(time),
        _ => Err(format!("{text:?} is too long: ten years are the most")),
    }
}

/// Nobody waits longer, and an end that lies so far ahead is still a moment that clocks can name.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn groups_and_ranges_of_groups() {
        assert_eq!(parse_range("7"), Ok(7..=7));
        assert_eq!(parse_range("1-100"), Ok(1..=100));
        for wrong in ["", "0", "-", "3-1", "1-", "-1", "a-b", "1-2-3"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn endpoints_are_hosts_and_ports() {
        for right in [
            "127.0.0.1:7101",
            "localhost:1",
            "[::1]:7101",
            "store-1.net:7101",
        ] {
            assert_eq!(parse_endpoint(right), Ok(right.to_owned()));
        }
        for wrong in [
            "nonsense",
            "http://127.0.0.1:7101",
            "::1:7101",
            ":7101",
            "a:",
            "a:0",
            "a:70000",
            "a b:1",
            "",
        ] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_to_listen_on_are_resolved() {
        let localhost = parse_listen("localhost:7109").expect("every machine knows it");
        assert!(localhost.ip().is_loopback() && localhost.port() == 7109);
        let numbers = "0.0.0.0:1".parse::<SocketAddr>().expect("an address");
        assert_eq!(parse_listen("0.0.0.0:1"), Ok(numbers));
        assert!(parse_listen("localhost").is_err());
    }

    #[test]
    fn negative_numbers_are_values_and_flags_stay_flags() {
        let parsed = Arguments::try_parse_from(["polyraft", "kv", "put", "neg", "-5"]);
        let Verb::Kv { verb } = parsed.expect("a value").verb else {
            panic!("not kv")
        };
        assert!(matches!(verb, KvVerb::Put { value, .. } if value == "-5"));
        let line = ["polyraft", "kv", "put", "key", "--group", "3", "value"];
        let parsed = Arguments::try_parse_from(line).expect("a flag between");
        let Verb::Kv { verb } = parsed.verb else {
            panic!("not kv")
        };
        assert!(matches!(verb, KvVerb::Put { options, .. } if options.group == 3));
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "5",
            "s",
            "5 s",
            "-1s",
            "1e9s",
            "9999999999999999999999s",
            // A moment so far ahead has no name.
            "1000000000000h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
