int cuTensorMapEncodeTiled() { return 0; }
