//! `weft up`, `down`, `check` and `call` as a person uses them.
