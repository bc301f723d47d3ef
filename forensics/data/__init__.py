"""From text to batches: sources give documents, a tokenizer shards, the order sequence ids."""
