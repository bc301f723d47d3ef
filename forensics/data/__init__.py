"""Sources give documents, a tokenizer gives shards, the order gives sequence ids, and batches join
the three.
"""
