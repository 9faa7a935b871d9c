//! Properties of the grammar.
