"""Core ML's native side for tests on Linux: what `coremltools.libcoremlpython` is on macOS.

Off macOS coremltools ships without that one module, and everything else of it is there. So nothing of coremltools' own
Python is imitated here: `MLModel`, `CompiledMLModel`, `MLComputePlan`, `MLState`, `compile_model` are coremltools'
own, and stand on a native module that executes through the reference executor.

    native.py   the module: classes and methods by the names that coremlpython/CoreMLPython.mm binds
    compiled.py what the compiler makes
    faults.py   what is to go wrong, and what was called: two files in a folder that all processes of a test share
    plan.py     model structures and compute plans
    install.py  putting the module under coremltools, in this process or in any that starts with site/ on PYTHONPATH
"""
