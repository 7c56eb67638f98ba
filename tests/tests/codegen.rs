//! The committed protobuf code is what the `.proto` files say.

use std::fs;
use std::path::Path;

use polyraft_tests::codegen::{PACKAGES, generate};

#[test]
fn committed_protobuf_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace");
    for package in PACKAGES {
        for (name, content) in generate(root, package).expect("the .proto files compile") {
            let path = root.join(package).join("src").join("proto").join(name);
            let committed = fs::read(&path).unwrap_or_default();
            assert!(
                committed == content,
                "{} is out of date: run `make codegen`",
                path.display()
            );
        }
    }
}
