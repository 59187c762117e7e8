"""Who speaks when: the interface of diarizers, how a recording is cut for them, and one without a model."""
