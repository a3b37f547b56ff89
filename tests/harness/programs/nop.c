/* What an exec costs, and nothing else: the payload of the benchmarks. */
int main(void) { return 0; }
