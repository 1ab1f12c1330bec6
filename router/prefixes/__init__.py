"""Which replica holds which blocks: one index, fed by snapshots, events and expectations."""
