"""Tables on disk: Parquet parts and a manifest per table (writer), read by DuckDB and Arrow
(reader, sandbox).
"""
