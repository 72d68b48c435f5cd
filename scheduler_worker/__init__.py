"""The data path's other half: the scheduling core, the engine, the worker's shell and the simulator."""
