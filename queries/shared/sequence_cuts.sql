-- How each run cuts its sources into sequences, in tokens. Gives `lengths` (run, length, stride).
windows as (
    select
        run, cast(config ->> '$.data.sequence_length' as bigint) as width,
        coalesce(config ->> '$.data.window', 'shared') as cut
    from runs
),
lengths as (  -- number i of a source is its tokens [i·stride, i·stride + length)
    select
        run, width + if(cut = 'inside', 0, 1) as length,
        width + if(cut = 'separate', 1, 0) as stride
    from windows
),
