//! codegen
fn main(){}
