//! Windows of flow control.
