//! polyraft
fn main() {}
