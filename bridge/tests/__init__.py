"""Tests of the bridge: the real program, a real llama.cpp server, the SDK's client."""
