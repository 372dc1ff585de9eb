//! System instructions and events.
