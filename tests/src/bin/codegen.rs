//! Writes the committed protobuf code anew; `polyraft_tests::codegen` says from what.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs;
use std::path::Path;

use polyraft_tests::codegen::{PACKAGES, generate};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("the package lies in the workspace")?;
    for package in PACKAGES {
        let target = root.join(package).join("src").join("proto");
        for (name, content) in generate(root, package)? {
            fs::create_dir_all(&target)?;
            let path = target.join(name);
            if fs::read(&path).ok().as_ref() != Some(&content) {
                fs::write(&path, content)?;
                println!("wrote {}", path.display());
            }
        }
    }
    Ok(())
}
