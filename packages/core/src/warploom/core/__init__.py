"""Warploom's core: what every operator family shares.

Importing this package imports no torch and touches no GPU; import the module that you need:

==================  ==============================================================
module              what it holds
==================  ==============================================================
``errors``          the exception tree
``settings``        the table of ``WARPLOOM_*`` settings
``device``          drivers, architectures, device guards
``tensors``         DLPack inputs, argument checks by named dimensions
``problem``         the base of the frozen problem descriptions
``backends``        ``Backend``, ``Operator``, ``select`` and ``explain``
``torch_ops``       registration with ``torch.library``
``workspace``       exact workspace layouts over caller-owned buffers
``tuning``          measured backend orders (YAML)
``descriptors``     TMA descriptors
``jit``             kernel specs, compilers, the kernel cache, launching
``testing``         comparisons, case grids
``bench``           the benchmark harness
``cli``             the ``warploom`` command
==================  ==============================================================
"""
