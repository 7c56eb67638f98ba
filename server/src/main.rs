//! polyraft
fn main(){}
