def test_x(tiny_run):
    import time
    print(tiny_run.table("steps").to_pandas() if 0 else tiny_run.table("steps")["loss"], tiny_run.saved_steps())
