//! Page walks and software TLBs.
