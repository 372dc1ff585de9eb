"""Work on the disks of running machines: snapshot, commit, stream, mirror, back up, beside the guest."""
