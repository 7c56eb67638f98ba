//! Generates the committed protobuf code, without `protoc`.
//!
//! The `.proto` files of a package lie in its `proto/`, what is made of them in `src/proto/`: one
//! Rust file per protobuf package and, for gRPC reflection, the compiled descriptors as
//! `descriptor.bin`. Nobody who builds or uses Polyraft runs a generator; `make codegen` does after
//! a change, and `tests/codegen.rs` notices a forgotten one.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use prost::Message;

/// Packages with a `proto` directory.
pub const PACKAGES: [&str; 2] = ["transport", "server"];

/// What the `.proto` files below `root/PACKAGE/proto` become: name below `src/proto` and content.
///
/// # Errors
///
/// A `.proto` file is wrong, or a file cannot be read or written.
pub fn generate(root: &Path, package: &str) -> Result<BTreeMap<String, Vec<u8>>, Box<dyn Error>> {
    let protos = root.join(package).join("proto");
    if !protos.is_dir() {
        return Ok(BTreeMap::new());
    }
    let mut sources = Vec::new();
    for entry in fs::read_dir(&protos)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "proto") {
            sources.push(path);
        }
    }
    sources.sort();
    if sources.is_empty() {
        return Ok(BTreeMap::new());
    }
    let descriptors = protox::compile(&sources, [&protos])?;
    let scratch = tempfile::tempdir()?;
    let binary = descriptors.encode_to_vec();
    tonic_prost_build::configure()
        .out_dir(scratch.path())
        .bytes(".")
        .compile_fds(descriptors)?;
    let mut files = BTreeMap::from([("descriptor.bin".to_owned(), binary)]);
    for entry in fs::read_dir(scratch.path())? {
        let entry = entry?;
        files.insert(
            entry.file_name().to_string_lossy().into_owned(),
            fs::read(entry.path())?,
        );
    }
    Ok(files)
}
