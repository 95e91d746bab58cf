//! Parts of the mesh die, and calls go on.
