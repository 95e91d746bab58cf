//! A call's trace, read back from the built-in store and from a real Jaeger.
