"""Registers, command list, dispatch and semaphores: who does what when."""
