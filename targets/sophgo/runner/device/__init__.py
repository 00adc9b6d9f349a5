"""The program that plays compiled models: on a board, and on the chips' simulators.

Standard library only, Python 3.8 or newer, no import from outside this folder. It travels as one file,
`runner.pyz` (see `..program`), which is the very file that the simulators are driven with here:

    python3 runner.pyz run PACKAGE --out DUMP     step a package's tokens, write a dump folder
    python3 runner.pyz serve PACKAGE              the keyboard demo's protocol on stdin and stdout
    python3 runner.pyz info MODEL ...             the tensors of models, as JSON
    python3 runner.pyz frames CHIP R W            models driven through two pipes

It takes the place of the original demos' C++ programs: `native` binds the vendor's libraries through ctypes,
`cvi` and `bm` are the two runtimes, `loop` steps segments with the cache kept outside.
"""
