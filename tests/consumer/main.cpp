// Exits with 1 unless the library that this program links computes right.
bool is_right();

int main() { return is_right() ? 0 : 1; }
