//! What the kill campaign needs beside its story.

pub mod load;
