//! What checks Polyraft from outside its crates.
//!
//! Four kinds of check live in this package; unit, property and conformance tests live beside the code
//! they test.
//!
//! | kind | where | finds | cannot find |
//! |---|---|---|---|
//! | repository checks | [`tidy`], [`deps`], [`citations`]; `tests/tidy.rs`, `tests/deps.rs`, `tests/rules.rs` | a file, a link or a dependency that breaks the house rules; a page that names what is gone | anything about behaviour |
//! | whole processes | `tests/process.rs` | lost acknowledged writes, stuck groups, unclear errors, with real stores, sockets and `kill -9` | a lost page cache: `kill -9` keeps what the kernel has taken |
//! | simulated worlds | `src/bin/sim.rs`, `corpus.txt`; the worlds are the test kit's | what whole hosts do wrong under faults, with the seed | anything beyond its models: RocksDB, the wire, threads, the server |
//! | histories | `src/bin/lincheck.rs` | any order of results that no single copy of the data could have given | faults that no client saw |
//!
//! Contract of the process tests: they run the binary that `make build` made (or `POLYRAFT_BIN`), on
//! ports the system picks, in temporary directories; whatever they start is stopped when the test ends,
//! also by a panic; they wait for conditions with generous bounds and never assert on how long something
//! took.
//!
//! Of the other packages of the workspace this one depends on the test kit only, of which it has the
//! search for an order and the worlds: the server is reached over its sockets and its command line only, as
//! its users reach it. So the repository checks build without RocksDB.

pub mod citations;
pub mod codegen;
pub mod deps;
pub mod linearizability;
pub mod process;
pub mod rust_source;
pub mod tidy;
pub mod workload;
