"""What Ascend tools write: AscendCL and nano dumps, ATB trees, msprobe, ais_bench and MindIE files.

Each reader stands beside a writer that shares none of its code. Bytes become tensors in three stages that
stay apart: a numbering gives the number format, a layout the logical order, a mapping (atcjson) the names.
"""
